"""Telling everyone: incidents, the events that follow from acts and incidents, and webhooks to partners.

``store`` is the database of a host, ``incidents`` what people are told, ``events`` what programs are told, ``desk``
turns the log of acts into both, ``webhooks`` keeps endpoints, ``targets`` says where they may point, ``deliveries``
what is due to whom, and ``deliverer`` sends it. ``standby`` is the thread that it lives in.
"""

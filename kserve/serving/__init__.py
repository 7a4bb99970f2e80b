"""The HTTP server: scores, profiles, identities, eligibility and topics of the announced snapshot, as JSON."""

"""What the README claims, measured: one file per claim, with its peers side by side. ``python -m bench --list``."""

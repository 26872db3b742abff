"""The daemon: names, records, arranges. DESIGN.md says why; app.py is the composition root."""

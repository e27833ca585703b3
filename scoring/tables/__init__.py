"""The score table on disk: its schema, writing, reading, counts, and the verified lookup."""

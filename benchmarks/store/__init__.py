"""The expert store at real size: writing, reading, and the whole driver under a memory cap."""

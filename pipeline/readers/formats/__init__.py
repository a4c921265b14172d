"""Readers of the formats of other programs: subtitles and Word documents."""

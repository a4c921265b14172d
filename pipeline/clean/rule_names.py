"""Names of the rules that `--without` can switch off. This module imports nothing, so that `--help` answers at once."""

RULES = (
    *("entities", "unwrap", "gaiji", "mojibake", "lacuna", "widen", "notes", "boilerplate", "quotes", "quote-style"),
    *("spaces", "marks", "script", "variants", "punct", "verse", "footnotes", "site-ads", "shifted"),
)

"""What kinds of characters Chinese text is made of; the parts of regular expressions are for use inside [ ]."""

from __future__ import annotations

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇"
# The same as UTF-16 units: characters of the first plane, and the first units of those of planes 2 and 3, all Han.
HAN_UNITS = ((0x3007, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
HAN_BEYOND = (0xD840, 0xD8BF)
LACUNA = "□"  # stands for a character that is lost or cannot be shown
MARKS = "，。！？：；、「」『』《》〈〉（）〔〕【】"  # those that only Chinese text has; “”‘’…— are everybody's
ENDS = "。！？"
DOTS = "…"
CONTINUES = "，、；："
OPENERS = "“‘「『（《〈【〔〖"
CLOSERS = "”’」』）》〉】〕〗"

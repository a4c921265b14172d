"""What kinds of characters Chinese text is made of; the parts of regular expressions are for use inside [ ]."""

from __future__ import annotations

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇"
LACUNA = "□"  # stands for a character that is lost or cannot be shown
MARKS = "，。！？：；、「」『』《》〈〉（）〔〕【】"  # those that only Chinese text has; “”‘’…— are everybody's
ENDS = "。！？"
DOTS = "…"
CONTINUES = "，、；："
OPENERS = "“‘「『（《〈【〔〖"
CLOSERS = "”’」』）》〉】〕〗"

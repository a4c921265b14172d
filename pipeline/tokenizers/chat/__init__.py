"""Encode conversations: a chat template over any tokenizer.

Start with `chat_tokenizer.py`. `template.py` renders the template, and marks the special tokens and what the assistant
writes.
"""

from pipeline.tokenizers.chat.chat_tokenizer import ChatCard, ChatTokenizer, Conversations
from pipeline.tokenizers.chat.template import CHATML, TURN_END, TURN_START, Message

__all__ = ["CHATML", "TURN_END", "TURN_START", "ChatCard", "ChatTokenizer", "Conversations", "Message"]

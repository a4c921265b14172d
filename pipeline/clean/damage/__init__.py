"""Damage of whole passages: debris of HTTP and HTML, and GBK read from the wrong byte."""

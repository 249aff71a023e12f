"""HTML pages, tables and charts that any report uses, and Markdown of cards.

A page runs no script and fetches nothing. Charts are inline SVG that follows the reader's light or dark mode. Details
open and close with plain HTML.
"""

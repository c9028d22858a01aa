"""A small back office: it adds, imports exchange rates, books orders, writes reports."""

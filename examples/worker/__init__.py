"""A small back office: it adds, imports exchange rates, books orders, pays amounts out, writes reports."""

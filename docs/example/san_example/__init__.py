"""Extends san-hil from outside: start here when you bring a provider of your own."""

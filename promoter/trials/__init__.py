"""Trials on live traffic: between Staging and Production users say whether a version helps (docs/trials.md)."""

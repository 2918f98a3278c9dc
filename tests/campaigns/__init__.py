"""Campaigns trained for real, run by hand; what came out is kept beside them."""

"""The demo: a tiny model is trained and analysed on this machine, on real input."""

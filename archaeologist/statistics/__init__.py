"""Pure numbers: distributions, weights, drift, sketches. No file, no bus; ``kernels`` alone is compiled."""

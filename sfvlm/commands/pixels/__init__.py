"""Commands of what each pixel shows: measure it, train it, draw it. Their flags are in `options`, which imports no torch."""

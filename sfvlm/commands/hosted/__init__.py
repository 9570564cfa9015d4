"""Commands of a host with few tokens: how near its words stay, what it retained, serving it. Their flags, in `options`, import no torch."""

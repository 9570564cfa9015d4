"""What things cost: seconds, memory, energy and multiply-adds, measured in turns in one process.

In: encoders, hosts or a bootstrap run. Out: rows of medians and ratios, and plots. `measure` takes turns, `encoders`,
`hosts` and `bootstrap` are what is measured. It knows `util` to `onnx`.
"""

"""The original `llava` package: its contract, our tower by it, how it gets one, and its checkpoints in transformers' layout.

In: a host of that package. Out: `package.register`, which makes the package accept our towers, and
`convert.convert_folder`, a transformers host. It knows `hosts` and what `hosts` knows.
"""

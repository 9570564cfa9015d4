"""What every room may use: files that are whole or absent, errors in one line, tensors by name, devices, results files.

In: paths, tensors, rows of numbers. Out: the same, checked and written. It knows no other room.
"""

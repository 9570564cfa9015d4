"""A SparseFormer as one .onnx file, and such a file as an encoder.

In: a model. Out: a file that was compared with the model before it is kept, and `session.OnnxEncoder`. It knows `util`
to `encoder`.
"""

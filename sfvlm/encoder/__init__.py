"""What the sparse encoder is. Read `sparseformer` first: it goes from pixels to tokens in the order that data flow.

In: pixels (B, 3, H, W). Out: N tokens (B, N, D) at every block, the box that each looked at, and one pooled vector.
`configuration` says how it is built, `roi` is the arithmetic of boxes, `focusing` the three ways to look (the paper's own
in `fresh`, what they share in `boxes`), `blocks` the teacher's own blocks; `folder` opens one from a folder, `accelerate`
makes one faster by `replacing` its layers or `compiling` it, `showlab` reads the official weights. It knows `util`, and
`photos` for examples.
"""

"""What a student comes from: dense towers of transformers, open_clip and timm, read strictly, and what is inherited from them.

In: a folder or name of a model. Out: `open.open_teacher`, a frozen `Teacher` in this package's names, and
`inherit.inherit`, a student with a report of where each tensor came from. `formats` reads the libraries' files,
`tables` are their names of tensors, `student` says how a student is built. It knows `util`, `photos`, `encoder` and `zoo`.
"""

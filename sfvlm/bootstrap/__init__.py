"""How a student learns: it is trained to say what its teacher says, from photos without labels.

In: a teacher, a student, photos, and a host where the objective asks for one. Out: a folder with the finished model and
how it was made. `run` reads as the order of things, `step` is one of many, `options` are the flags, `alignment` the
objectives, `targets` what is said to be matched. It knows `util` to `vqa`.
"""

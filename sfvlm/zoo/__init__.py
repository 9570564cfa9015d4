"""Named weights: shipped in the package, downloaded, or on a hub under a shorter name.

In: a name, a path or a hub id. Out: a folder that `from_pretrained` opens. It knows `util` and `encoder`.
"""

"""Named weights: shipped in the package, downloaded, or on a hub under a shorter name.

In: a name, a path or a hub id. Out: `names.resolve`, a folder that `from_pretrained` opens; what it takes to get there is in
`downloads`, `cache` and `packing`. `weight_files` reads the tensors of any model's folder. It knows `util` and `encoder`.
"""

"""What is seen: photos of folders, shards, datasets and the scene renderer, and the views that models get of them.

In: what a person calls their photos. Out: `sources.open_photos`, decoded `Photo`s by number with their labels and
captions, and in `views` tensors (B, 3, S, S). What cannot be read is counted and said. It knows `util`.
"""

"""Models that say of each pixel what it shows: as transformers has them, trained, and from class names alone.

In: a tower of any kind (sparse, dense, reduced) and photos with masks, or names. Out: `model.SparseFormerForSemanticSegmentation`,
trained by `training`, its folders, and scores of many models on the same photos in `evaluation`. It knows `util` to `evaluate`.
"""

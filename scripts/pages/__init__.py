"""What the pages show: figures, tables and plots, each by its name, from the files in results/.

In: results/**/*.json, which the commands of eval/ and `sfvlm` wrote; pages with markers. Out: the same pages, filled; docs/images.
It knows the package for statistics and for writing files.
"""

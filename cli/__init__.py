"""The `diffusiongpt` command. Imports the packages lazily, so that --help is quick."""

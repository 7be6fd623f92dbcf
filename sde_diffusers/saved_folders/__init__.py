"""Folders that pipelines are saved in.

whole_folder        saved as a whole or not at all, and loaded while nobody else saves
stale_files         what an earlier save left behind; `stale_weights`: of weights
single_file         the code that comes along; `carried_source`: of classes of one's own
repository          what of a folder a repository holds
refused_files       pickles and links, which none may hold
trusted_libraries   whose classes are loaded
"""

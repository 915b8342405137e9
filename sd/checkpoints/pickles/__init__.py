"""A restricted unpickler: reads what `torch.save` wrote without running any of it.

A pickle is a program for a stack machine. It names Python objects, calls them and sets their attributes, so
`pickle.load` on a stranger's file runs whatever the file's author wanted. Here a file is read in three stages, and none
of them imports, calls or modifies anything that the file names:

opcodes    the program is scanned: allowed opcodes, lengths, memo indices, sizes of numbers, the number of operations
unpickler  the scanned program runs on a stack machine of our own, which makes nothing but inert descriptions
objects    those descriptions, and the list of names that a program may use
tensors    the result is checked once more, and the descriptions of tensors become views of the file
reader     the two containers of `torch.save`: ZIP archives, and the older sequence of pickles

The package imports nothing of the project but the errors and the file mapping.
"""

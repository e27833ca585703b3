"""Python runs this at the start of every process, workers too: `faulty://` becomes a file system of fsspec's."""

import fsspec

fsspec.register_implementation("faulty", "faulty_storage.FaultyFileSystem")

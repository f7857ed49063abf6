"""The files of a data set, as docs/format.md specifies them byte by byte.

==============================  ==================================================  ==================================
file on the store               what it holds                                       read and written by
==============================  ==================================================  ==================================
``dataset.json``                the manifest: classes, splits, and for each shard   ``manifest``: :class:`Manifest`,
                                its paths, sizes, samples, checksums; written last  :class:`Shard`, fingerprint
``<split>/000000.tar``          a shard: a plain WebDataset tar of images and       any tar program; written by
                                labels                                              ``stoker.dataset.prepare.shards``
``<split>/000000.idx``          its index, a safetensors file of columns: offset,   ``index``: :class:`ShardIndex`,
                                length, label, size and checksum of each sample     :class:`IndexRow`
its pages, in the same object   the same rows again, row by row, 32 to a page,      ``pages``: :func:`pack_index`,
                                so that a block's are one small range read          :func:`read_pages`
an image in a shard             a JPEG with restart markers and a table of its      ``jpeg``: :class:`Marks`,
                                restart intervals, so that a crop can be cut out    :func:`crop_jpeg`
an image file, in a shard or    its kind, size and orientation, which decide for    ``image_header``:
not                             preparation, training, evaluation and serving       :class:`ImageHeader`
==============================  ==================================================  ==================================

``parts``, ``exif`` and ``manifest`` import none of the others, ``image_header`` the first two, ``jpeg`` ``parts`` and
``image_header``, ``index`` ``jpeg`` and ``manifest``, and ``pages`` ``index``.
"""

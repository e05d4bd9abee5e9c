"""Documents in, passages out: split, sync to Milvus, search.

    documents.py  read a folder of Markdown and text        terms.py   the words a chunk or a query is found by
    blocks.py     the block structure of Markdown           store.py   one Milvus: a server, or (lite.py) a folder
    split.py      blocks to chunks                          schema.py  what a collection holds
    sync.py       make a collection equal to a folder       search.py  batches of questions to batches of passages

Search is Milvus' own BM25: no embedding model, no key and no network is needed.
"""

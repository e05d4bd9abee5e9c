"""Documents in, passages out: split, sync to Milvus, search.

    documents.py   read a folder of Markdown and text     store.py   one Milvus: a server, or a folder (Lite)
    chunks.py      Markdown to chunks                     search.py  batches of questions to batches of passages
    collection.py  what a collection holds, search terms  sync.py    make a collection equal to a folder

Search is Milvus' own BM25: no embedding model, no key and no network is needed.
"""

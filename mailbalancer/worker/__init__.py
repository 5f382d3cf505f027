"""The data plane: one process per core, uvloop under all, raw sockets on an edge-triggered epoll of its own.

The life of a connection, file by file:

    listener  accepts, refuses whom the lists refuse, pauses when descriptors run out
    session   reads what must be known before choosing (PROXY header, ClientHello), asks the service for a server,
              connects, tries the next server when that fails, and at the end writes the log line
    service   what is shared by all sessions of a service: limits, queue, pools, persistence, imbalance
    relay     a client and a server joined, and how that ends
    flow      one direction: back-pressure, half-close, splice(2) for bulk
    main      the process: configuration, control channel, heartbeat, stop
"""

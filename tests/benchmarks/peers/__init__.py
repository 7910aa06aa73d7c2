"""One file a peer: it runs in the peers' own environment, in a fresh process a run, and speaks `protocol`.

    echo REQUEST | build/peers/bin/python -m tests.benchmarks.peers.ik_llama

Nothing here may import edgellm, except `ours`: the peers' environment has no such package.
"""

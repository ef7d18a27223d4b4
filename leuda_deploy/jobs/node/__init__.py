"""studies that come over the network -> labelled, and their results sent back.

database.py     the tables of the queue, and one change of them at a time
queue.py        what has come and what became of it, on the disk: nothing is lost, or done twice
peers.py        who may send, who gets the results, and how they are kept secret on the way
waiting.py      connections that say nothing are hung up on
connections.py  a connection -> an association
receive.py      images that come -> the queue
commit.py       senders that ask what we hold -> answers
send.py         results -> whoever wants them
node.py         all of them together, with the model
"""

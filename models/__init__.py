"""Packed rows to logits: configuration, masks, rotary embedding, attention, decoder, losses.

Nothing here knows of datasets or trainer.

Read `config` for the options, `decoder.py` for the network, `attention/masks.py` for what keeps documents apart,
`positions` for the rotary embedding, `loss.py` and `head.py` for what is trained, `parameters.py` and `init.py` for
initial values.
"""

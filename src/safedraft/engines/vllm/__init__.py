"""vLLM as the second engine: SSD is its verification rule.

``rule`` is the algorithm over a batch and knows nothing of vLLM; ``runner`` brings it vLLM's
logits; ``scheduler`` and ``plugin`` change what vLLM decides about rows and requests; ``checks``
and ``options`` say what is refused; ``setup``, ``pair`` and ``serve`` start it.

Where vLLM, as it stands, can choose a token without the draft's word, and what happens here:

1. *Behind a prefill* (``GPUModelRunner._sample`` without draft metadata, or a row with none in a
   batch that has some): the sampler would draw from the target. Here such a row decides nothing;
   the draft proposes behind the last token of its own, and the scheduler runs that token again with
   the drafts behind it. The first token of a reply is then decided like any other.
2. *Behind a prefill after a preemption*: the drafts from before it are kept, and the first of them
   is decided. The draft reads such a row anew, even where all but one of its tokens are still
   cached. Behind a prompt whose beginning was cached: the row of 1.
3. *A prompt all cached but for one token, beside running requests* (``Scheduler.schedule`` fills it
   up with -1 in place of drafts): placeholders are no drafts; the row of 1, or of 2.
4. *Drafts that did not fit into a step* (``Scheduler.schedule`` cuts them to the token budget):
   those that fit are decided, and the one behind them.
5. *Behind a block that matched throughout* (the bonus token of ``RejectionSampler``): the draft
   proposes one token more than the T that vLLM is given, so that this place has a draft and a q and
   is decided like any other. A block holds up to T + 1 tokens, as in the first engine.
6. *Near the end of the context* (``_input_fits_in_drafter`` drops the whole batch's drafts, and the
   scheduler cuts those of one request): no request is let in that could come there.
7. *A request that was left out of a step* (``_get_spec_decode_draft_probs`` falls back to drafts
   without q): q is kept with the request, and drafts that are not the kept ones are an error.
8. *A greedy batch* (the drafter skips q, and the target's argmax decides): q is always there.
9. *Logits processors, penalties, structured output, forced tokens* reach into the target alone, and
   *beam search* picks by the target's log-probabilities: refused, request by request.
10. *Another speculative method, runner V2, pipeline stages, recurrent models, adapters of the
    target* and all else that takes another way: refused at start, as is a vLLM whose code differs.

vLLM's samplers themselves are replaced by one that raises, so that a way which is not in this list
ends in an error and not in a token.
"""

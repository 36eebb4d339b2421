"""vLLM as an engine: the rules of SafeDraft are its verification of drafts.

``batch`` decides the tokens of a batch from what ``reading`` copies from the device; both import
nothing of vLLM. ``runner`` brings them vLLM's logits, and ``grammar`` what a request allows;
``scheduler`` and ``plugin`` change what vLLM does with rows and requests; ``checks`` and
``options`` refuse what is not supported; ``setup``, ``load`` and ``engine`` start it.

The unmodified vLLM can choose a token without the draft's distribution in these places:

1. *After a prefill* (``GPUModelRunner._sample`` without draft metadata, or a row without it in a
   batch that has some), the sampler draws from the target. Here such a row decides nothing; the
   draft proposes tokens after the row's own last token, and the scheduler runs that token again
   with the drafts after it. The first token of a reply is then decided like any other.
2. *After the prefill that follows a preemption*: the drafts from before the preemption are kept,
   and the first of them is decided. The draft reads such a row again, even where all tokens but one
   are still cached. A prompt whose beginning was cached is a row of 1.
3. *A prompt that is cached except for one token, beside running requests* (``Scheduler.schedule``
   fills it up with -1 in place of drafts): placeholders are not drafts; it is a row of 1 or 2.
4. *Drafts that do not fit into a step* (``Scheduler.schedule`` cuts them to the token budget):
   those that fit are decided, and the position after them.
5. *After a block that was accepted throughout* (the bonus token of ``RejectionSampler``): the draft
   proposes one token more than the T that vLLM is given, so that this position has a draft and a q
   and is decided like any other. A block holds up to T + 1 tokens, as in the decoding loop.
6. *Near the end of the context* (``_input_fits_in_drafter`` drops the drafts of the whole batch,
   and the scheduler cuts those of one request): no request is admitted that could reach it.
7. *A request that was left out of a step* (``_get_spec_decode_draft_probs`` falls back to drafts
   without q): q is kept with the request, and drafts that are not the kept ones are an error.
8. *A greedy batch* (the drafter skips q, and the target's best token is taken): q is always there.
9. *Logits processors, penalties and forced tokens* change the target alone, and *beam search*
   chooses among the most likely tokens itself: refused for each request. *Grammars* are masks of
   the target in vLLM; here both models have them, the draft while it proposes (``grammar``).
10. *Another speculative method, runner V2, pipeline stages, recurrent models, adapters of the
    target* and everything else that takes another path: refused at start, as is a vLLM whose code
    differs.

vLLM's samplers are replaced by one that raises, so that a path that is missing from this list ends
in an error and not in a token.

Whatever a rule's ``after_match`` is, every position has a draft here ("carry"). A rule under which
the target decides alone ignores the draft. NaN or infinite logits end their own request with an
error and no other.
"""

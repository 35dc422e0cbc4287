/* The protocol of claim, lease, device lock, expiry, cancel and leadership, for exhaustive checking by spin.
 *
 * One GPU, two jobs that both want it, two workers that may be killed or paused between any two steps, two leaders of
 * which one may be killed, one person who cancels, and a clock that may let any lease or term run out at any moment, which
 * stands for every pause. What one database transaction does is atomic; everything else interleaves.
 *
 * Each guard of the design is a macro. `-D NO_<guard>` takes it away, and must lead to a counterexample; with all of them
 * no state violates an assertion: tests/model/test_lease_model.py. The names of the assertions' invariants are those of
 * docs/reliability.md.
 */

#define WORKERS 2
#define JOBS 2
#ifndef TOKENS
#define TOKENS 2                 /* grants in all, 2 or 3; afterwards nothing is claimed any more */
#endif
#ifndef EPOCHS
#define EPOCHS 2                 /* terms in all, of which the last is the survivor's */
#endif

#ifdef NO_TOKEN                  /* a finish names the token of the job's latest claim */
#define TOKEN(c) (true)
#else
#define TOKEN(c) (c)
#endif
#ifdef NO_LIVE                   /* a finish counts only under a lease that is live by the database's clock */
#define LIVE(c) (true)
#else
#define LIVE(c) (c)
#endif
#ifdef NO_DEVICE_LOCK            /* a runner starts only under the lock that the one before it, and all it left, held */
#define DEVICE_LOCK(c) (true)
#else
#define DEVICE_LOCK(c) (c)
#endif
#ifdef NO_GPU_ROW                /* a grant takes the GPU's row only if nobody holds it */
#define GPU_ROW(c) (true)
#else
#define GPU_ROW(c) (c)
#endif
#ifdef NO_TOKEN_ORDER            /* a grant is refused if a larger token has held the GPU */
#define TOKEN_ORDER(c) (true)
#else
#define TOKEN_ORDER(c) (c)
#endif
#ifdef NO_JOB_STATE              /* a claim takes only a job that waits */
#define JOB_STATE(c) (true)
#else
#define JOB_STATE(c) (c)
#endif
#ifdef NO_RENEW                  /* only a live lease is renewed */
#define RENEW(c) (is_up)
#else
#define RENEW(c) (c)
#endif
#ifdef NO_PAST_END               /* a sweep ends a lease only if it is past its end now, whatever it saw before */
#define PAST_END(c) (true)
#else
#define PAST_END(c) (c)
#endif
#ifdef NO_EPOCH                  /* a sweep's transaction does nothing unless its epoch is the current one */
#define EPOCH(c) (true)
#else
#define EPOCH(c) (c)
#endif
#ifdef NO_CANCEL_STATE           /* a cancel ends only a job that waits; one that runs is asked to stop */
#define CANCEL_STATE(c) (true)
#else
#define CANCEL_STATE(c) (c)
#endif
#ifdef NO_HEED                   /* a job that was asked to stop does not wait for another attempt */
#define HEED(c) (false)
#else
#define HEED(c) (c)
#endif

/* Guards that are no conditions stand where they act: NO_NEW_EPOCH, NO_FREE, NO_REQUEUE. */

mtype = { None, Active, Over };                       /* a lease */
mtype = { Waiting, Running, Succeeded, Cancelled };   /* a job */

mtype job[JOBS] = Waiting;
byte claimed_under[JOBS];        /* the token of the latest claim */
bool asked[JOBS];                /* its cancel was acknowledged */
byte ends[JOBS];                 /* how often it reached a terminal state */

mtype lease[TOKENS + 1] = None;
bool past[TOKENS + 1];           /* past its end by the database's clock */
byte token;                      /* the largest one issued */
byte held;                       /* leases of the GPU that are active */

byte gpu;                        /* the GPU's row: the token that holds it */
byte last;                       /* the largest token that ever held it */
bool locked;                     /* the device lock */
byte alive;                      /* runners on the GPU, with everything that they started */

byte epoch;                      /* the leadership row */
bool term_over = true;
byte leaders;                    /* that took over with the current epoch */

#define IS_LIVE(t) (lease[t] == Active && !past[t])
#define HAS_ENDED(j) (job[j] == Succeeded || job[j] == Cancelled)

/* What ends a lease frees its GPU, and has what ran under it run again, all in one transaction. */
inline end_lease(t) {
    lease[t] = Over;
    held--;
#ifndef NO_FREE                  /* the GPU's row is freed with the lease */
    if :: gpu == t -> gpu = 0 :: else fi;
#endif
#ifndef NO_REQUEUE               /* the job is put back with the lease, not in a transaction of its own */
    requeue(t);
#endif
}

inline requeue(t) {
    if
    :: job[0] == Running && claimed_under[0] == t -> lose(0)
    :: else -> if :: job[1] == Running && claimed_under[1] == t -> lose(1) :: else fi
    fi
}

inline lose(j) {
    if
    :: HEED(asked[j]) -> job[j] = Cancelled; ends[j]++
    :: else -> job[j] = Waiting
    fi
}

proctype worker() {
    byte t, j;
    bool is_up;

claim:
    atomic { t = 0; j = 0 };             /* what is not used any more is forgotten: fewer states */
    if
    :: atomic { (token < TOKENS && (job[0] == Waiting || job[1] == Waiting)) ->
            if :: job[0] == Waiting -> j = 0 :: job[1] == Waiting -> j = 1 fi;
            token++; t = token }         /* the number is given out here; the grant takes effect below, or not at all */
    :: goto gone                         /* killed, or nothing left to do */
    fi;
    if
    :: atomic { (GPU_ROW(gpu == 0) && TOKEN_ORDER(t > last) && JOB_STATE(job[j] == Waiting)) ->
            assert(!asked[j]);                                          /* cancel-heeded */
            assert(!HAS_ENDED(j));                                      /* one-end */
            assert(job[j] != Running);                                  /* one-attempt */
            assert(held == 0);                                          /* gpu-exclusive */
            assert(t > last);                                           /* gpu-tokens-grow */
            gpu = t; last = t; lease[t] = Active; past[t] = false; held++;
            job[j] = Running; claimed_under[j] = t }
    :: atomic { !(GPU_ROW(gpu == 0) && TOKEN_ORDER(t > last) && JOB_STATE(job[j] == Waiting)) -> goto claim }
    fi;

    if                                   /* the guardian starts a runner, or the worker gives up or dies before */
    :: atomic { DEVICE_LOCK(!locked) -> locked = true; alive++; is_up = true; assert(alive <= 1) }  /* runner-exclusive */
    :: goto released
    :: goto gone
    fi;

running:
    if
    :: atomic { RENEW(IS_LIVE(t)) -> assert(lease[t] == Active); past[t] = false };     /* ended-lease-rests */
        goto running
    :: atomic { (TOKEN(job[j] == Running && claimed_under[j] == t) && LIVE(IS_LIVE(t))) ->
            assert(job[j] == Running && claimed_under[j] == t);         /* fenced-end */
            assert(IS_LIVE(t));                                         /* live-token */
            if
            :: job[j] = Succeeded; ends[j]++
            :: skip; lose(j)             /* it failed, and is to run again; skip: an else must not meet other options */
            fi;
            assert(ends[j] <= 1) };                                     /* one-end */
        if :: goto running :: skip fi    /* the reply was lost, and it reports again; or it was not */
    :: skip                              /* refused, or it has nothing to report */
    :: goto gone
    fi;
    atomic { alive--; locked = false; is_up = false };

released:
    atomic { if :: lease[t] == Active -> end_lease(t) :: else fi };
#ifdef NO_REQUEUE
    if :: atomic { skip; requeue(t) } :: goto gone fi;
#endif
    goto claim;

gone:                                    /* killed: its guardian ends what runs, at some moment */
    if
    :: is_up -> atomic { alive--; locked = false; is_up = false }
    :: else
    fi;
    if                                   /* the host's next worker gives back what this one held; or none comes */
    :: atomic { lease[t] == Active -> end_lease(t) }
    :: skip
    fi
}

proctype leader(bool is_mortal) {
    byte mine, seen;

look:
    seen = 0;
    do
    :: atomic { (term_over && epoch < EPOCHS - is_mortal) ->     /* the last term is the survivor's */
#ifdef NO_NEW_EPOCH                      /* whoever takes over raises the epoch */
            if :: epoch == 0 -> epoch = 1 :: else fi;
#else
            epoch++; leaders = 0;
#endif
            mine = epoch; leaders++; term_over = false;
            assert(leaders <= 1) }                                      /* one-leader */
    :: atomic { (mine > 0 && lease[1] == Active) -> seen = 1 }; goto act
    :: atomic { (mine > 0 && lease[2] == Active) -> seen = 2 }; goto act
#if TOKENS > 2
    :: atomic { (mine > 0 && lease[3] == Active) -> seen = 3 }; goto act
#endif
    :: is_mortal -> goto dead            /* killed */
    :: timeout -> goto dead
    od;

act:                                     /* any time after it looked, and after renewals, releases and other leaders */
    atomic {
        if
        :: (EPOCH(mine == epoch) && lease[seen] == Active && PAST_END(past[seen])) ->
            assert(mine == epoch);                                      /* fenced-sweeps */
            assert(past[seen]);                                         /* expired-past-end */
            end_lease(seen)
        :: else -> seen = 0
        fi };
#ifdef NO_REQUEUE
    if :: atomic { (seen > 0) -> requeue(seen) } :: (seen == 0) :: is_mortal -> goto dead fi;
#endif
    goto look;

dead:
    skip
}

/* Any lease and any term may run out at any moment: whoever holds it may have been paused, or cut off, for so long. */
proctype clock() {
    byte t;
    do
    :: atomic { (lease[1] == Active && !past[1]) -> past[1] = true }
    :: atomic { (lease[2] == Active && !past[2]) -> past[2] = true }
#if TOKENS > 2
    :: atomic { (lease[3] == Active && !past[3]) -> past[3] = true }
#endif
    :: atomic { (!term_over && epoch < EPOCHS) -> term_over = true }
    :: timeout -> break
    od
}

proctype person() {
    if
    :: atomic { CANCEL_STATE(job[0] == Waiting) ->
            assert(!HAS_ENDED(0));                                                      /* one-end */
            asked[0] = true; job[0] = Cancelled; ends[0]++ }
    :: atomic { (job[0] == Running) -> asked[0] = true }
    :: skip
    fi
}

init {
    atomic { run worker(); run worker(); run leader(true); run leader(false); run clock(); run person() };
    (_nr_pr == 1);
    /* Everything has come to rest, and one leader is alive: nothing is held, and no job is stuck. */
    assert(held == 0 && alive == 0);
    assert(gpu == 0);                                                                   /* gpu-row-agrees */
    assert(job[0] != Running && job[1] != Running)                                      /* running-under-lease */
}

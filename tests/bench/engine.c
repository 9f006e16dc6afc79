/* The yardstick: an event loop written by hand for one scenario, with the columns that preba's records have.
 *
 * A FIFO pool of cores, one queue, a batch when a slice is idle and (the queue is full or its head is due), equal
 * slices, the lowest idle one first. Nothing here is used by preba itself.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;
typedef int32_t i32;

typedef struct { i64 at, key, payload; } event;

typedef struct { event *items; i64 count; } heap;

static int before(const event *a, const event *b) {
    return a->at < b->at || (a->at == b->at && a->key < b->key);
}

static void push(heap *h, i64 at, i64 key, i64 payload) {
    event e = {at, key, payload};
    i64 place = h->count++;
    while (place > 0) {
        i64 parent = (place - 1) >> 1;
        if (!before(&e, &h->items[parent])) break;
        h->items[place] = h->items[parent];
        place = parent;
    }
    h->items[place] = e;
}

static event pop(heap *h) {
    event first = h->items[0], last = h->items[--h->count];
    i64 place = 0, child = 1;
    while (child < h->count) {
        if (child + 1 < h->count && before(&h->items[child + 1], &h->items[child])) child++;
        if (!before(&h->items[child], &last)) break;
        h->items[place] = h->items[child];
        place = child;
        child = 2 * place + 1;
    }
    h->items[place] = last;
    return first;
}

enum { END = 0, RELEASE = 3, LEAVE = 4, ARRIVAL = 5, TIMER = 6 };
#define KEY(rank, id) (((i64)(rank) << 48) | (i64)(id))
#define NEVER INT64_MAX

/* Columns, in the order in which the caller passes them; NULL where it wants none. */
typedef struct {
    i64 *preprocess_start, *preprocess_end, *wait, *enqueued, *dispatched, *start, *end, *batch_id, *completed;
    i32 *slice, *size, *units, *server, *outcome, *attempts;
    i32 *span_station, *span_unit;
    i64 *span_request, *span_arrived, *span_start, *span_released, *span_end;
} columns;

#define PUT(column, i, value) do { if (c->column) c->column[i] = (value); } while (0)

typedef struct {
    i64 n, cores, slices, batch_max, delay;
    const i64 *arrival, *occupancy, *tau;
    const columns *c;
    heap h;
    uint64_t free_cores;
    i64 core_head, core_tail, *core_next, spans;
    i64 *owner;
    i64 head, tail, waiting, *next, *enqueued;
    uint64_t idle;
    i64 now, armed, batches;
    i64 *batch_head, *batch_count;
} world;

static void work(world *w, i64 request) {
    const columns *c = w->c;
    i64 core = __builtin_ctzll(w->free_cores);
    w->free_cores &= w->free_cores - 1;
    i64 done = w->now + w->occupancy[request];
    w->owner[core] = request;
    PUT(preprocess_start, request, w->now);
    PUT(wait, request, w->now - w->arrival[request]);
    i64 k = w->spans++;
    PUT(span_station, k, 0);
    PUT(span_unit, k, (i32)core);
    PUT(span_request, k, request);
    PUT(span_arrived, k, w->arrival[request]);
    PUT(span_start, k, w->now);
    PUT(span_released, k, done);
    PUT(span_end, k, done);
    push(&w->h, done, KEY(RELEASE, core), request);
}

static void pump(world *w) {
    const columns *c = w->c;
    while (w->waiting && w->idle) {
        i64 due = w->enqueued[w->head] + w->delay;
        if (w->waiting < w->batch_max && w->now < due) break;
        i64 slice = __builtin_ctzll(w->idle);
        w->idle &= w->idle - 1;
        i64 count = w->waiting < w->batch_max ? w->waiting : w->batch_max;
        i64 end = w->now + w->tau[count], id = w->batches++, r = w->head;
        w->batch_head[slice] = r;
        w->batch_count[slice] = count;
        for (i64 k = 0; k < count; k++) {
            PUT(dispatched, r, w->now);
            PUT(start, r, w->now);
            PUT(end, r, end);
            PUT(slice, r, (i32)slice);
            PUT(batch_id, r, id);
            PUT(size, r, (i32)count);
            PUT(units, r, (i32)count);
            PUT(attempts, r, 1);
            r = w->next[r];
        }
        w->head = r;
        w->waiting -= count;
        push(&w->h, end, KEY(END, id), slice);
    }
    i64 due = w->waiting && w->idle ? w->enqueued[w->head] + w->delay : NEVER;
    w->armed = due == NEVER ? NEVER : due < w->now ? w->now : due;
}

static void offer(world *w, i64 request) {
    const columns *c = w->c;
    PUT(preprocess_end, request, w->now);
    PUT(enqueued, request, w->now);
    PUT(server, request, 0);
    w->enqueued[request] = w->now;
    if (w->waiting++) w->next[w->tail] = request; else w->head = request;
    w->tail = request;
    pump(w);
}

i64 run(i64 n, i64 cores, i64 slices, i64 batch_max, i64 delay, const i64 *arrival, const i64 *occupancy,
        const i64 *tau, const columns *c) {
    world w = {n, cores, slices, batch_max, delay, arrival, occupancy, tau, c};
    w.h.items = malloc(sizeof(event) * (size_t)(cores + slices + 8));
    w.core_next = malloc(sizeof(i64) * (size_t)n);
    w.next = malloc(sizeof(i64) * (size_t)n);
    w.enqueued = malloc(sizeof(i64) * (size_t)n);
    w.owner = malloc(sizeof(i64) * (size_t)cores);
    w.batch_head = malloc(sizeof(i64) * (size_t)slices);
    w.batch_count = malloc(sizeof(i64) * (size_t)slices);
    w.free_cores = cores == 64 ? ~0ull : (1ull << cores) - 1;
    w.idle = (1ull << slices) - 1;
    w.core_head = -1;
    w.armed = NEVER;
    i64 next = 0;
    for (;;) {
        i64 at = NEVER, key = NEVER;
        if (w.h.count) at = w.h.items[0].at, key = w.h.items[0].key;
        int what = 0;
        if (w.armed < at || (w.armed == at && w.armed != NEVER && KEY(TIMER, 0) < key)) at = w.armed, key = KEY(TIMER, 0), what = 1;
        if (next < n && (arrival[next] < at || (arrival[next] == at && KEY(ARRIVAL, next) < key))) at = arrival[next], what = 2;
        if (at == NEVER) break;
        w.now = at;
        if (what == 2) {
            i64 request = next++;
            if (c->outcome) c->outcome[request] = 0;
            if (w.free_cores) {
                work(&w, request);
            } else {
                if (w.core_head < 0) w.core_head = request; else w.core_next[w.core_tail] = request;
                w.core_tail = request;
                w.core_next[request] = -1;
            }
        } else if (what == 1) {
            w.armed = NEVER;
            pump(&w);
        } else {
            event e = pop(&w.h);
            i64 rank = e.key >> 48;
            if (rank == RELEASE) {
                i64 core = e.key & (((i64)1 << 48) - 1);
                w.free_cores |= 1ull << core;
                if (w.core_head >= 0) {
                    i64 request = w.core_head;
                    w.core_head = w.core_next[request];
                    work(&w, request);
                }
                event leave = {at, KEY(LEAVE, e.payload), e.payload};
                if (w.h.count && before(&w.h.items[0], &leave)) push(&w.h, at, leave.key, e.payload);
                else offer(&w, e.payload);
            } else if (rank == LEAVE) {
                offer(&w, e.payload);
            } else {
                i64 slice = e.payload, r = w.batch_head[slice];
                for (i64 k = 0; k < w.batch_count[slice]; k++) {
                    if (c->completed) c->completed[r] = at;
                    r = w.next[r];
                }
                w.idle |= 1ull << slice;
                pump(&w);
            }
        }
    }
    free(w.h.items); free(w.core_next); free(w.next); free(w.enqueued); free(w.owner);
    free(w.batch_head); free(w.batch_count);
    return w.batches;
}

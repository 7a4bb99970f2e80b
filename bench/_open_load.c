/* Open arrivals over HTTP/1.1: requests are sent when a schedule says so, whatever became of earlier ones.

   A plan comes in on stdin (see _open_load.py), what was found goes out as JSON. One thread, one epoll. A latency runs
   from the time that the schedule intended to the last byte of the answer, in microseconds; so a server that stalls
   cannot hide it. A request that finds no free connection of its caller is *missed*, at once: nothing waits in here,
   apart from what `pipeline` lets queue up on a connection. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    STREAMS = 16, PHASES = 64, BUCKETS = 2048 + 16 * 1024, MOST = (1 << 27) - 1, EVENTS = 1024, HEAD = 4096,
    READ = 1 << 18, FIRST_RETRY_US = 200000, RECONNECT_US = 100000, DRAIN_US = 1000000
};
enum { GOOD, LATE, SHED, LIMITED, FAILED, OUTCOMES };
enum { NEVER, OBEY, IMPATIENT };

static const char *const NAMES[OUTCOMES] = {"good", "late", "shed", "limited", "failed"};

typedef struct { uint32_t buckets[BUCKETS]; } Histogram;        /* as HdrHistogram does with 3 digits */
typedef struct { uint32_t stream, request; int64_t intended_us; int attempt; } Flight;
typedef struct { char *text; uint32_t length; } Request;
typedef struct { uint32_t *idle; uint32_t head, count, size, first, turn; } Caller;   /* idle: a ring of connections */

typedef struct {
    char label[32];
    double weight;
    uint32_t connections, callers, requests, first;
    Request *request;
    Caller *caller;
} Stream;

typedef struct {
    char label[32];
    double seconds, rate, cpu;
    uint64_t offered[STREAMS], sent[STREAMS], missed[STREAMS], retried[STREAMS], outcome[STREAMS][OUTCOMES];
    Histogram *served[STREAMS], *turned_away[STREAMS];
} Phase;

typedef struct {
    int socket, stream, connecting, closing;
    uint32_t caller, depth, oldest;
    Flight *flights;
    char *out, head[HEAD];
    size_t out_size, out_used, out_sent, head_used, body_left;
    int in_body, status, retry_after, dirty, writing, listed;
} Connection;

typedef struct { int64_t due_us; Flight flight; } Retry;
typedef struct { uint64_t offered, sent, missed, outcome[OUTCOMES]; } Moment;

static struct sockaddr_in server;
static Stream streams[STREAMS];
static Phase phases[PHASES];
static int stream_count, phase_count, current_phase, poisson = 1, retrying = NEVER, most_attempts = 3;
static uint32_t pipeline = 1;
static int64_t good_us = 50000, moment_us = 100000, began_us;
static Connection *connections;
static uint32_t connection_count, open_count, *dirty, dirty_count;
static Retry *retries;
static size_t retry_count, retry_size;
static Moment *moments;
static size_t moment_count;
static uint64_t random_state = 88172645463325252ull, reconnects;
static int poller;

static void fail(const char *what) { perror(what); exit(1); }
static void *zeroed(size_t count, size_t size) {
    void *made = calloc(count ? count : 1, size);
    if (!made) fail("memory");
    return made;
}

static int64_t clock_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000ll + now.tv_nsec / 1000;
}

static double cpu_seconds(void) {
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return used.tv_sec + used.tv_nsec / 1e9;
}

static uint64_t draw(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}
static double uniform(void) { return (double)(draw() >> 11) * 0x1p-53; }

static void record(Histogram **histogram, int64_t value) {
    uint64_t v = value < 0 ? 0 : value > MOST ? MOST : (uint64_t)value;
    int shift = v < 2048 ? 0 : 53 - __builtin_clzll(v);
    if (!*histogram) *histogram = zeroed(1, sizeof(Histogram));
    (*histogram)->buckets[shift ? 1024 + shift * 1024 + (v >> shift) - 1024 : v]++;
}

static Moment *moment_at(int64_t now_us) {
    size_t place = (size_t)((now_us - began_us) / moment_us);
    return &moments[place < moment_count ? place : moment_count - 1];
}

/* Which connections are free. */

static Caller *caller_of(const Connection *c) { return &streams[c->stream].caller[c->caller]; }

static void now_idle(Connection *c) {
    Caller *caller = caller_of(c);
    if (!c->listed) caller->idle[(caller->head + caller->count++) % caller->size] = (uint32_t)(c - connections);
    c->listed = 1;
}

static Connection *usable(Stream *stream, Caller *caller, uint32_t number) {
    while (caller->count) {
        Connection *c = &connections[caller->idle[caller->head]];
        caller->head = (caller->head + 1) % caller->size;
        caller->count--;
        c->listed = 0;
        if (c->depth == 0 && c->socket >= 0 && !c->connecting) return c;
    }
    for (int tries = 0; pipeline > 1 && tries < 4; tries++) {
        uint32_t nth = caller->turn++ % caller->size;
        Connection *c = &connections[stream->first + number + nth * stream->callers];
        if (c->depth < pipeline && c->socket >= 0 && !c->connecting && !c->closing) return c;
    }
    return NULL;
}

/* Connections. */

static void watch(Connection *c, int how, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)(c - connections)};
    if (epoll_ctl(poller, how, c->socket, &event)) fail("epoll_ctl");
}

static void dial(Connection *c) {
    int one = 1;
    c->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->socket < 0) fail("socket");
    setsockopt(c->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->connecting = 1;
    c->closing = c->in_body = c->writing = 0;
    c->depth = c->oldest = 0;
    c->out_used = c->out_sent = c->head_used = c->body_left = 0;
    if (connect(c->socket, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) fail("connect");
    watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void later(int64_t due_us, Flight flight) {          /* a heap, the earliest first */
    size_t at = retry_count++;
    if (retry_count > retry_size) {
        retry_size = retry_size ? 2 * retry_size : 1024;
        retries = realloc(retries, retry_size * sizeof *retries);
        if (!retries) fail("memory");
    }
    for (; at && retries[(at - 1) / 2].due_us > due_us; at = (at - 1) / 2) retries[at] = retries[(at - 1) / 2];
    retries[at] = (Retry){due_us, flight};
}

static Flight earliest(void) {
    Flight found = retries[0].flight;
    Retry last = retries[--retry_count];
    size_t at = 0, child;
    while ((child = 2 * at + 1) < retry_count) {
        if (child + 1 < retry_count && retries[child + 1].due_us < retries[child].due_us) child++;
        if (retries[child].due_us >= last.due_us) break;
        retries[at] = retries[child];
        at = child;
    }
    retries[at] = last;
    return found;
}

static void ended(const Connection *c, Flight flight, int outcome, int64_t now_us) {
    Phase *phase = &phases[current_phase];
    phase->outcome[flight.stream][outcome]++;
    moment_at(now_us)->outcome[outcome]++;
    if (outcome == GOOD || outcome == LATE) record(&phase->served[flight.stream], now_us - flight.intended_us);
    if (outcome == SHED) record(&phase->turned_away[flight.stream], now_us - flight.intended_us);
    if ((outcome == SHED || outcome == FAILED) && retrying != NEVER && flight.attempt < most_attempts) {
        double wait_us = FIRST_RETRY_US * (1 << flight.attempt) * (0.5 + uniform());
        if (retrying == OBEY && c->retry_after > 0) wait_us = 1e6 * c->retry_after;
        flight.attempt++;
        later(now_us + (int64_t)wait_us, flight);
    }
}

static void hang_up(Connection *c, int64_t now_us) {
    for (; c->depth; c->depth--, c->oldest = (c->oldest + 1) % pipeline)
        ended(c, c->flights[c->oldest], FAILED, now_us);
    close(c->socket);
    open_count -= !c->connecting;
    reconnects++;
    dial(c);
}

static void flush(Connection *c, int64_t now_us) {
    ssize_t sent = send(c->socket, c->out + c->out_sent, c->out_used - c->out_sent, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        hang_up(c, now_us);
        return;
    }
    if (sent > 0) c->out_sent += (size_t)sent;
    if (c->out_sent == c->out_used) c->out_sent = c->out_used = 0;
    if ((c->out_used > 0) != c->writing) {
        c->writing = !c->writing;
        watch(c, EPOLL_CTL_MOD, c->writing ? EPOLLIN | EPOLLOUT : EPOLLIN);
    }
}

/* Requests. */

static int begin(Flight flight) {
    Stream *stream = &streams[flight.stream];
    uint32_t number = flight.request % stream->callers;
    Request *request = &stream->request[flight.request];
    Connection *c = usable(stream, &stream->caller[number], number);
    if (!c) return 0;
    if (c->out_used + request->length > c->out_size) {
        c->out_size = 2 * (c->out_used + request->length);
        c->out = realloc(c->out, c->out_size);
        if (!c->out) fail("memory");
    }
    memcpy(c->out + c->out_used, request->text, request->length);
    c->out_used += request->length;
    c->flights[(c->oldest + c->depth++) % pipeline] = flight;
    if (!c->dirty) {
        c->dirty = 1;
        dirty[dirty_count++] = (uint32_t)(c - connections);
    }
    return 1;
}

static void offer(Flight flight, int64_t now_us) {
    Phase *phase = &phases[current_phase];
    Moment *moment = moment_at(now_us);
    if (flight.attempt) phase->retried[flight.stream]++;
    else phase->offered[flight.stream]++;
    moment->offered++;
    if (begin(flight)) {
        phase->sent[flight.stream]++;
        moment->sent++;
    } else {
        phase->missed[flight.stream]++;
        moment->missed++;
    }
}

static Flight chosen(int64_t intended_us) {
    double all = 0, at;
    uint32_t which = 0;
    for (int s = 0; s < stream_count; s++) all += streams[s].weight;
    for (at = uniform() * all; which + 1 < (uint32_t)stream_count && at >= streams[which].weight; which++)
        at -= streams[which].weight;
    return (Flight){which, (uint32_t)(draw() % streams[which].requests), intended_us, 0};
}

/* Answers. */

static int outcome_of(int status, int64_t taken_us) {
    if (status >= 200 && status < 400) return taken_us <= good_us ? GOOD : LATE;
    return status == 503 ? SHED : status == 429 ? LIMITED : FAILED;
}

static void answered(Connection *c, int64_t now_us) {
    Flight flight = c->flights[c->oldest];
    c->oldest = (c->oldest + 1) % pipeline;
    c->depth--;
    c->in_body = 0;
    ended(c, flight, outcome_of(c->status, now_us - flight.intended_us), now_us);
    if (c->depth == 0 && !c->closing) now_idle(c);
}

static long number_after(const char *head, size_t size, const char *name) {
    const char *found = memmem(head, size, name, strlen(name));
    return found ? strtol(found + strlen(name), NULL, 10) : -1;
}

static int understood(Connection *c) {
    long length = number_after(c->head, c->head_used, "\r\nContent-Length: ");
    c->status = (int)strtol(c->head + 9, NULL, 10);
    if (memcmp(c->head, "HTTP/1.1 ", 9) || (length < 0 && c->status != 304)) return 0;
    c->retry_after = c->status == 503 ? (int)number_after(c->head, c->head_used, "\r\nRetry-After: ") : -1;
    if (c->status != 200 && memmem(c->head, c->head_used, "\r\nConnection: close", 19)) c->closing = 1;
    c->body_left = length > 0 ? (size_t)length : 0;
    c->in_body = 1;
    c->head_used = 0;
    return 1;
}

static int consume(Connection *c, const char *data, size_t size, int64_t now_us) {     /* 0: no HTTP */
    while (size) {
        if (!c->in_body) {
            size_t before = c->head_used, taken = HEAD - 1 - before < size ? HEAD - 1 - before : size;
            size_t from = before > 3 ? before - 3 : 0;
            memcpy(c->head + before, data, taken);
            char *end = memmem(c->head + from, before + taken - from, "\r\n\r\n", 4);
            if (!end && before + taken == HEAD - 1) return 0;
            c->head_used = end ? (size_t)(end + 4 - c->head) : before + taken;
            data += c->head_used - before;
            size -= c->head_used - before;
            if (!end) return 1;
            c->head[c->head_used] = 0;
            if (c->depth == 0 || !understood(c)) return 0;
        }
        size_t body = c->body_left < size ? c->body_left : size;
        data += body;
        size -= body;
        c->body_left -= body;
        if (c->body_left) return 1;
        answered(c, now_us);
    }
    return 1;
}

static void receive(Connection *c) {
    static char buffer[READ];
    ssize_t size = recv(c->socket, buffer, sizeof buffer, 0);
    int64_t now_us = clock_us();
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0 || !consume(c, buffer, (size_t)size, now_us) || (c->closing && !c->in_body)) hang_up(c, now_us);
}

static void connected(Connection *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->socket, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        close(c->socket);
        usleep(RECONNECT_US / 100);
        dial(c);
        return;
    }
    c->connecting = 0;
    open_count++;
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    now_idle(c);
}

static void wait_for(int64_t until_us) {
    struct epoll_event events[EVENTS];
    int64_t left = until_us - clock_us();
    struct timespec timeout = {left > 0 ? left / 1000000 : 0, left > 0 ? left % 1000000 * 1000 : 0};
    int count = epoll_pwait2(poller, events, EVENTS, &timeout, NULL);
    if (count < 0 && errno != EINTR) fail("epoll_pwait2");
    for (int i = 0; i < count; i++) {
        Connection *c = &connections[events[i].data.u32];
        if (c->connecting) connected(c);
        else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
        else if (events[i].events & EPOLLOUT) flush(c, clock_us());
    }
}

static void send_all(int64_t now_us) {
    for (uint32_t i = 0; i < dirty_count; i++) {
        Connection *c = &connections[dirty[i]];
        c->dirty = 0;
        if (!c->connecting && c->out_used && !c->writing) flush(c, now_us);
    }
    dirty_count = 0;
}

/* The schedule. */

static double gap_us(double rate) { return 1e6 / rate * (poisson ? -log(1.0 - uniform()) : 1.0); }

static void run_phase(Phase *phase, double *next_us, int64_t end_us) {
    double cpu = cpu_seconds();
    for (int64_t now_us = clock_us(); now_us < end_us; now_us = clock_us()) {
        while (retry_count && retries[0].due_us <= now_us) {
            int64_t due_us = retries[0].due_us;
            Flight flight = earliest();
            flight.intended_us = due_us;
            offer(flight, now_us);
        }
        for (; *next_us <= now_us; *next_us += gap_us(phase->rate)) offer(chosen((int64_t)*next_us), now_us);
        send_all(now_us);
        int64_t until_us = *next_us < end_us ? (int64_t)*next_us : end_us;
        wait_for(retry_count && retries[0].due_us < until_us ? retries[0].due_us : until_us);
    }
    if (*next_us < end_us) *next_us = end_us;
    phase->cpu = cpu_seconds() - cpu;
}

/* The plan. */

static void read_requests(Stream *stream, const char *file) {
    FILE *from = fopen(file, "rb");
    uint32_t length;
    if (!from) fail(file);
    while (fread(&length, sizeof length, 1, from) == 1) {
        stream->request = realloc(stream->request, (stream->requests + 1) * sizeof(Request));
        Request *request = &stream->request[stream->requests++];
        *request = (Request){zeroed(length, 1), length};
        if (fread(request->text, 1, length, from) != length) fail(file);
    }
    fclose(from);
}

static void add_stream(const char *line) {
    Stream *stream = &streams[stream_count++];
    char file[1024];
    if (stream_count > STREAMS || sscanf(line, "stream %31s %lf %u %u %1023s", stream->label, &stream->weight,
                                         &stream->connections, &stream->callers, file) != 5) fail(line);
    read_requests(stream, file);
    stream->first = connection_count;
    connection_count += stream->connections;
}

static void read_plan(void) {
    char line[2048], word[32];
    unsigned port;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "port %u", &port) == 1) server.sin_port = htons((uint16_t)port);
        else if (sscanf(line, "seed %lu", &random_state) == 1) draw();
        else if (sscanf(line, "arrivals %31s", word) == 1) poisson = !strcmp(word, "poisson");
        else if (sscanf(line, "pipeline %u", &pipeline) == 1) continue;
        else if (sscanf(line, "good_us %ld", &good_us) == 1) continue;
        else if (sscanf(line, "moment_us %ld", &moment_us) == 1) continue;
        else if (sscanf(line, "retry %31s %d", word, &most_attempts) == 2)
            retrying = !strcmp(word, "obey") ? OBEY : !strcmp(word, "impatient") ? IMPATIENT : NEVER;
        else if (!strncmp(line, "stream ", 7)) add_stream(line);
        else if (!strncmp(line, "phase ", 6)) {
            Phase *phase = &phases[phase_count++];
            if (phase_count > PHASES ||
                sscanf(line, "phase %31s %lf %lf", phase->label, &phase->seconds, &phase->rate) != 3) fail(line);
        }
    }
}

static void connect_all(void) {
    struct rlimit limit = {connection_count + 64, connection_count + 64};
    struct rlimit had;
    getrlimit(RLIMIT_NOFILE, &had);
    if (had.rlim_cur < limit.rlim_cur) {
        limit.rlim_max = had.rlim_max > limit.rlim_cur ? had.rlim_max : limit.rlim_cur;
        if (setrlimit(RLIMIT_NOFILE, &limit)) fail("setrlimit");
    }
    connections = zeroed(connection_count, sizeof *connections);
    dirty = zeroed(connection_count, sizeof *dirty);
    for (int s = 0; s < stream_count; s++) {
        Stream *stream = &streams[s];
        stream->caller = zeroed(stream->callers, sizeof(Caller));
        for (uint32_t k = 0; k < stream->callers; k++) {
            stream->caller[k].size = (stream->connections - k - 1) / stream->callers + 1;
            stream->caller[k].idle = zeroed(stream->caller[k].size, sizeof(uint32_t));
        }
        for (uint32_t k = 0; k < stream->connections; k++) {
            Connection *c = &connections[stream->first + k];
            *c = (Connection){.stream = s, .caller = k % stream->callers, .flights = zeroed(pipeline, sizeof(Flight))};
            dial(c);
            while (stream->first + k + 1 - open_count > 128) wait_for(clock_us() + 10000);
        }
    }
    while (open_count < connection_count) wait_for(clock_us() + 10000);
}

/* What was found. */

static void print_histogram(const char *name, const Histogram *histogram) {
    const char *comma = "";
    printf("\"%s\": [", name);
    for (int i = 0; histogram && i < BUCKETS; i++) {
        if (!histogram->buckets[i]) continue;
        int shift = i < 2048 ? 0 : (i - 1024) / 1024;
        uint64_t value = shift ? (uint64_t)(i - 1024 - shift * 1024 + 1024) << shift : (uint64_t)i;
        printf("%s[%lu, %u]", comma, value, histogram->buckets[i]);
        comma = ", ";
    }
    printf("]");
}

static void print_stream(const Phase *phase, int s) {
    printf("{\"label\": \"%s\", \"offered\": %lu, \"retried\": %lu, \"sent\": %lu, \"missed\": %lu, ", streams[s].label,
           phase->offered[s], phase->retried[s], phase->sent[s], phase->missed[s]);
    for (int o = 0; o < OUTCOMES; o++) printf("\"%s\": %lu, ", NAMES[o], phase->outcome[s][o]);
    print_histogram("served_us", phase->served[s]);
    printf(", ");
    print_histogram("turned_away_us", phase->turned_away[s]);
    printf("}");
}

static void print_all(void) {
    printf("{\"reconnects\": %lu, \"phases\": [", reconnects);
    for (int p = 0; p < phase_count; p++) {
        printf("%s\n{\"label\": \"%s\", \"seconds\": %.6f, \"rate\": %.3f, \"cpu\": %.3f, \"streams\": [", p ? "," : "",
               phases[p].label, phases[p].seconds, phases[p].rate, phases[p].cpu / phases[p].seconds);
        for (int s = 0; s < stream_count; s++) {
            if (s) printf(", ");
            print_stream(&phases[p], s);
        }
        printf("]}");
    }
    printf("],\n\"moments\": [");
    for (size_t m = 0; m < moment_count; m++) {
        printf("%s[%lu, %lu, %lu", m ? ", " : "", moments[m].offered, moments[m].sent, moments[m].missed);
        for (int o = 0; o < OUTCOMES; o++) printf(", %lu", moments[m].outcome[o]);
        printf("]");
    }
    printf("]}\n");
}

int main(void) {
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    poller = epoll_create1(EPOLL_CLOEXEC);
    read_plan();
    connect_all();
    double seconds = 0, next_us;
    for (int p = 0; p < phase_count; p++) seconds += phases[p].seconds;
    moment_count = (size_t)((seconds * 1e6 + DRAIN_US) / moment_us) + 1;
    moments = zeroed(moment_count, sizeof *moments);
    began_us = clock_us();
    next_us = began_us;
    seconds = 0;
    for (current_phase = 0; current_phase < phase_count; current_phase++) {
        seconds += phases[current_phase].seconds;
        run_phase(&phases[current_phase], &next_us, began_us + (int64_t)(seconds * 1e6));
    }
    current_phase--;
    for (int64_t end_us = clock_us() + DRAIN_US; clock_us() < end_us;) wait_for(end_us);
    print_all();
    return 0;
}

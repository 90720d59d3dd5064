"""What the relay uses of the C library and the kernel, and the few lines of C that macros need."""

from libc.errno cimport (
    EADDRNOTAVAIL, EAGAIN, ECONNABORTED, ECONNREFUSED, ECONNRESET, EHOSTUNREACH, EINPROGRESS,
    EINTR, EMFILE, ENETUNREACH, ENFILE, ENOBUFS, ENOMEM, EPERM, EPIPE, ETIMEDOUT, errno,
)
from libc.stddef cimport size_t
from libc.stdint cimport (
    INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <netinet/udp.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/random.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    #include <linux/errqueue.h>

    #ifdef KPROXY_DEBUG
    #define KP_DEBUG 1
    #define kp_check(yes) do { if (!(yes)) { \\
        fprintf(stderr, "kproxy relay: %s:%d: does not hold: %s\\n", __FILE__, __LINE__, #yes); \\
        abort(); } } while (0)
    #else
    #define KP_DEBUG 0
    #define kp_check(yes) ((void)0)
    #endif

    /* An IPv4 or IPv6 socket address; 28 bytes. */
    typedef union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } KpAddress;

    /* Figures have one writer or several and readers that take what is there: order is no matter,
       tearing is. */
    #define kp_count(at, by) ((void)__atomic_fetch_add((at), (by), __ATOMIC_RELAXED))
    #define kp_figure(at) __atomic_load_n((at), __ATOMIC_RELAXED)

    /* What another thread reads to decide something: a store is seen with all before it. */
    #define kp_load(at) __atomic_load_n((at), __ATOMIC_ACQUIRE)
    #define kp_store(at, to) __atomic_store_n((at), (to), __ATOMIC_RELEASE)

    /* References: the last one to let go must see what all others wrote before they did. */
    #define kp_hold(at) ((void)__atomic_fetch_add((at), 1, __ATOMIC_RELAXED))
    #define kp_let_go(at) (__atomic_sub_fetch((at), 1, __ATOMIC_ACQ_REL) == 0)

    #ifndef IP_BIND_ADDRESS_NO_PORT
    #define IP_BIND_ADDRESS_NO_PORT 24
    #endif
    #ifndef IP_LOCAL_PORT_RANGE
    #define IP_LOCAL_PORT_RANGE 51
    #endif

    /* Plain system calls: the C library's wrappers of these prepare for a thread being cancelled
       on the way in and out, 3 % of a short connection's processor time; nobody cancels ours. */
    #define kp_sys_recv(fd, data, size, flags) \
        syscall(SYS_recvfrom, (fd), (data), (size), (flags), NULL, NULL)
    #define kp_sys_send(fd, data, size, flags) \
        syscall(SYS_sendto, (fd), (data), (size), (flags), NULL, 0)
    #define kp_sys_accept(fd, address, size, flags) \
        ((int)syscall(SYS_accept4, (fd), (address), (size), (flags)))
    #define kp_sys_connect(fd, address, size) ((int)syscall(SYS_connect, (fd), (address), (size)))
    #define kp_sys_close(fd) ((int)syscall(SYS_close, (fd)))
    #define kp_sys_epoll_wait(epoll, events, most, milliseconds) \
        ((int)syscall(SYS_epoll_pwait, (epoll), (events), (most), (milliseconds), NULL, 8))

    /* netfilter's own header names both the same number, but drags in half of the kernel's net/. */
    #define KP_ORIGINAL_DST 80

    static inline void kp_errno(int problem) { errno = problem; }

    static inline int64_t kp_now(void) {
        struct timespec at;
        clock_gettime(CLOCK_MONOTONIC, &at);
        return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
    }

    static inline int kp_cond_init(pthread_cond_t *cond) {
        pthread_condattr_t how;
        int problem = pthread_condattr_init(&how);
        if (!problem) problem = pthread_condattr_setclock(&how, CLOCK_MONOTONIC);
        if (!problem) problem = pthread_cond_init(cond, &how);
        return problem;
    }

    static inline int kp_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t at) {
        struct timespec deadline = {at / 1000000000, at % 1000000000};
        return pthread_cond_timedwait(cond, mutex, &deadline);
    }

    /* A thread that no signal of the process is delivered to. */
    static inline int kp_thread(pthread_t *thread, void *(*run)(void *), void *with) {
        sigset_t all, before;
        int problem;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        problem = pthread_create(thread, NULL, run, with);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return problem;
    }
    """
    const bint KP_DEBUG
    void kp_check(bint yes) noexcept nogil

    ctypedef struct KpAny "struct sockaddr":
        uint16_t sa_family
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    ctypedef struct KpV4 "struct sockaddr_in":
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    ctypedef struct KpV6 "struct sockaddr_in6":
        uint16_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    ctypedef union Address "KpAddress":
        KpAny any
        KpV4 v4
        KpV6 v6

    void count "kp_count"(uint64_t *at, uint64_t by) noexcept nogil
    uint64_t figure "kp_figure"(uint64_t *at) noexcept nogil
    int load_flag "kp_load"(int *at) noexcept nogil
    void store_flag "kp_store"(int *at, int to) noexcept nogil
    void hold "kp_hold"(uint32_t *at) noexcept nogil
    bint let_go "kp_let_go"(uint32_t *at) noexcept nogil
    const int ORIGINAL_DST "KP_ORIGINAL_DST"
    int64_t now_ns "kp_now"() noexcept nogil
    void errno_set "kp_errno"(int problem) noexcept nogil

    ctypedef long ssize_t
    ctypedef unsigned int socklen_t
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *) noexcept nogil
    int pthread_mutex_destroy(pthread_mutex_t *) noexcept nogil
    int pthread_mutex_lock(pthread_mutex_t *) noexcept nogil
    int pthread_mutex_unlock(pthread_mutex_t *) noexcept nogil
    int pthread_cond_destroy(pthread_cond_t *) noexcept nogil
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *) noexcept nogil
    int pthread_cond_broadcast(pthread_cond_t *) noexcept nogil
    int pthread_join(pthread_t, void **) noexcept nogil
    int kp_cond_init(pthread_cond_t *) noexcept nogil
    int kp_cond_wait_until(pthread_cond_t *, pthread_mutex_t *, int64_t at) noexcept nogil
    int kp_thread(pthread_t *, void *(*)(void *) noexcept nogil, void *) noexcept nogil

    const int AF_INET, AF_INET6, SOCK_STREAM, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_CLOEXEC
    const int SOL_SOCKET, SO_ERROR, SO_LINGER, SO_KEEPALIVE, SO_TYPE, SO_ZEROCOPY
    const int SO_DOMAIN, SO_ACCEPTCONN, SO_RCVBUF, SO_SNDBUF
    const int IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, TCP_NODELAY, IP_LOCAL_PORT_RANGE
    const int IP_BIND_ADDRESS_NO_PORT
    const int SHUT_WR, MSG_NOSIGNAL, MSG_DONTWAIT, MSG_ZEROCOPY, MSG_ERRQUEUE, MSG_MORE
    const int F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, O_NONBLOCK
    const int GRND_NONBLOCK

    struct linger:
        int l_onoff
        int l_linger

    int socket(int family, int type, int protocol) noexcept nogil
    int accept4 "kp_sys_accept"(int fd, KpAny *address, socklen_t *size, int flags) noexcept nogil
    int bind(int fd, const KpAny *address, socklen_t size) noexcept nogil
    int connect "kp_sys_connect"(int fd, const KpAny *address, socklen_t size) noexcept nogil
    int getsockname(int fd, KpAny *address, socklen_t *size) noexcept nogil
    int getsockopt(int fd, int level, int name, void *value, socklen_t *size) noexcept nogil
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size) noexcept nogil
    int shutdown(int fd, int how) noexcept nogil
    ssize_t recv "kp_sys_recv"(int fd, void *data, size_t size, int flags) noexcept nogil
    ssize_t send "kp_sys_send"(int fd, const void *data, size_t size, int flags) noexcept nogil
    int close_fd "kp_sys_close"(int fd) noexcept nogil
    int fcntl(int fd, int command, ...) noexcept nogil
    ssize_t read(int fd, void *data, size_t size) noexcept nogil
    ssize_t write(int fd, const void *data, size_t size) noexcept nogil
    ssize_t getrandom(void *data, size_t size, unsigned int flags) noexcept nogil
    int inet_pton(int family, const char *text, void *to) noexcept nogil
    const char *inet_ntop(int family, const void *of, char *text, socklen_t size) noexcept nogil
    uint16_t htons(uint16_t) noexcept nogil
    uint16_t ntohs(uint16_t) noexcept nogil
    uint32_t ntohl(uint32_t) noexcept nogil

    const uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLERR, EPOLLHUP, EPOLLPRI, EPOLLET
    const int EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    const int EFD_CLOEXEC, EFD_NONBLOCK
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags) noexcept nogil
    int epoll_ctl(int epoll, int what, int fd, epoll_event *event) noexcept nogil
    int epoll_wait "kp_sys_epoll_wait"(
        int epoll, epoll_event *events, int most, int milliseconds
    ) noexcept nogil
    int eventfd(unsigned int value, int flags) noexcept nogil


cdef inline socklen_t address_size(const Address *address) noexcept nogil:
    """What the kernel wants to be told with it; 0 for one that is not set."""
    if address.any.sa_family == AF_INET:
        return sizeof(KpV4)
    return sizeof(KpV6) if address.any.sa_family == AF_INET6 else 0


cdef inline bint same_host(const Address *one, const Address *other) noexcept nogil:
    if one.any.sa_family != other.any.sa_family:
        return False
    if one.any.sa_family == AF_INET:
        return one.v4.sin_addr.s_addr == other.v4.sin_addr.s_addr
    return memcmp(&one.v6.sin6_addr, &other.v6.sin6_addr, 16) == 0


cdef inline bint same_place(const Address *one, const Address *other) noexcept nogil:
    # The port stands at the same offset in both families.
    return one.v4.sin_port == other.v4.sin_port and same_host(one, other)

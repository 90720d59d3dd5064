# What the kernel is asked by: declarations only, and the few helpers that every side uses.

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/prctl.h>
    #include <sys/resource.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef IP_BIND_ADDRESS_NO_PORT
    #define IP_BIND_ADDRESS_NO_PORT 24
    #endif

    /* Waits with nanoseconds (Linux 5.11); epoll_wait rounds to milliseconds, in which a rate of
       5,000 a second starts five operations late. */
    static int kp_wait(int poll, struct epoll_event *events, int most, int64_t nanoseconds) {
    #ifdef SYS_epoll_pwait2
        static int lacks_it = 0;
        if (!lacks_it) {
            struct timespec left = {nanoseconds / 1000000000, nanoseconds % 1000000000};
            int got = (int)syscall(SYS_epoll_pwait2, poll, events, most, &left, NULL, (size_t)0);
            if (got >= 0 || errno != ENOSYS)
                return got;
            lacks_it = 1;
        }
    #endif
        /* Rounded down: rather look once too often than start late. */
        return epoll_wait(poll, events, most, (int)(nanoseconds / 1000000));
    }
    """
    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t
    const int AF_INET, AF_INET6
    const int SOCK_STREAM, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_CLOEXEC
    const int SOL_SOCKET, SO_ERROR, SO_LINGER, SO_REUSEADDR, SO_RCVBUF, SO_SNDBUF
    const int IPPROTO_IP, IPPROTO_TCP, IPPROTO_IPV6, TCP_NODELAY, IPV6_V6ONLY
    const int IP_BIND_ADDRESS_NO_PORT
    const int MSG_NOSIGNAL, MSG_DONTWAIT
    const int EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CLOEXEC
    const uint32_t EPOLLIN, EPOLLOUT, EPOLLET, EPOLLRDHUP, EPOLLHUP, EPOLLERR
    const int EFD_NONBLOCK, EFD_CLOEXEC
    const int CLOCK_MONOTONIC, RUSAGE_THREAD, PR_SET_TIMERSLACK

    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        pass
    struct sockaddr:
        sa_family_t sa_family
    struct sockaddr_in:
        sa_family_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        sa_family_t sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
    struct sockaddr_storage:
        sa_family_t ss_family
    struct linger:
        int l_onoff
        int l_linger
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    union epoll_data_t:
        int fd
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    struct timeval:
        int64_t tv_sec
        int64_t tv_usec
    struct rusage:
        timeval ru_utime
        timeval ru_stime

    int socket(int, int, int) noexcept nogil
    int bind(int, const sockaddr *, socklen_t) noexcept nogil
    int listen(int, int) noexcept nogil
    int connect(int, const sockaddr *, socklen_t) noexcept nogil
    int accept4(int, sockaddr *, socklen_t *, int) noexcept nogil
    ssize_t send(int, const void *, size_t, int) noexcept nogil
    ssize_t recv(int, void *, size_t, int) noexcept nogil
    int sendmmsg(int, mmsghdr *, unsigned int, int) noexcept nogil
    int recvmmsg(int, mmsghdr *, unsigned int, int, timespec *) noexcept nogil
    int setsockopt(int, int, int, const void *, socklen_t) noexcept nogil
    int getsockopt(int, int, int, void *, socklen_t *) noexcept nogil
    int close(int) noexcept nogil
    ssize_t read(int, void *, size_t) noexcept nogil
    ssize_t write(int, const void *, size_t) noexcept nogil
    int epoll_create1(int) noexcept nogil
    int epoll_ctl(int, int, int, epoll_event *) noexcept nogil
    int eventfd(unsigned int, int) noexcept nogil
    int clock_gettime(int, timespec *) noexcept nogil
    int getrusage(int, rusage *) noexcept nogil
    int prctl(int, unsigned long) noexcept nogil
    int sched_yield() noexcept nogil
    int inet_pton(int, const char *, void *) noexcept nogil
    uint16_t htons(uint16_t) noexcept nogil
    int kp_wait(int, epoll_event *, int, int64_t) noexcept nogil


cdef enum:
    SECOND = 1_000_000_000
    MILLISECOND = 1_000_000
    #: Events taken at once.
    EVENTS = 256


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * SECOND + now.tv_nsec


cdef inline double cpu_seconds() noexcept nogil:
    """User and system time of the calling thread."""
    cdef rusage used
    getrusage(RUSAGE_THREAD, &used)
    return (
        <double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
        + <double>(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6
    )


cdef inline socklen_t length_of(int family) noexcept nogil:
    return sizeof(sockaddr_in6) if family == AF_INET6 else sizeof(sockaddr_in)


cdef inline void set_option(int fd, int level, int option, int value) noexcept nogil:
    setsockopt(fd, level, option, &value, sizeof(int))


cdef inline void close_reset(int fd) noexcept nogil:
    """The peer gets a RST: no queue is left, and no TIME_WAIT."""
    cdef linger at_once
    at_once.l_onoff = 1
    at_once.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(linger))
    close(fd)


cdef inline int watch(int poll, int fd, uint32_t events, uint32_t number) noexcept nogil:
    """0, or the errno."""
    cdef epoll_event event
    event.events = events
    event.data.u32 = number
    return errno if epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) < 0 else 0

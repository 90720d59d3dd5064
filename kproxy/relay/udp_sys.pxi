"""What UDP asks of the kernel: messages in batches, and what is said beside their bytes."""

cdef extern from *:
    """
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103  /* Linux 4.18 */
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104      /* Linux 5.0 */
    #endif
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>

    /* The calls themselves. With glibc's, each is a point where the thread may be cancelled, at the
       cost of two atomic operations; nobody cancels ours. */
    #define kp_recvmmsg(fd, messages, most) \\
        ((int)syscall(SYS_recvmmsg, (fd), (messages), (most), MSG_DONTWAIT, NULL))
    #define kp_sendmmsg(fd, messages, size) \\
        ((int)syscall(SYS_sendmmsg, (fd), (messages), (size), MSG_DONTWAIT))
    #define kp_sendmsg(fd, message) ((int)syscall(SYS_sendmsg, (fd), (message), MSG_DONTWAIT))
    #define kp_send(fd, data, size) \\
        ((int)syscall(SYS_sendto, (fd), (data), (size), MSG_DONTWAIT, NULL, 0))

    /* Room for a local address and a segment size, aligned as a cmsghdr must be. */
    typedef union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(struct in6_pktinfo)) + CMSG_SPACE(sizeof(int))];
    } KpControl;

    /* The address that a message came to, and how long each of the datagrams in it is (the last
       may be shorter); what is not said is left as it was. */
    static inline void kp_read_control(struct msghdr *header, KpAddress *local, uint32_t *segment) {
        struct cmsghdr *at;
        for (at = CMSG_FIRSTHDR(header); at != NULL; at = CMSG_NXTHDR(header, at)) {
            if (at->cmsg_level == IPPROTO_IP && at->cmsg_type == IP_PKTINFO) {
                struct in_pktinfo info;
                memcpy(&info, CMSG_DATA(at), sizeof(info));
                local->v4.sin_family = AF_INET;
                local->v4.sin_addr = info.ipi_addr;
            } else if (at->cmsg_level == IPPROTO_IPV6 && at->cmsg_type == IPV6_PKTINFO) {
                struct in6_pktinfo info;
                memcpy(&info, CMSG_DATA(at), sizeof(info));
                local->v6.sin6_family = AF_INET6;
                local->v6.sin6_addr = info.ipi6_addr;
            } else if (at->cmsg_level == IPPROTO_UDP && at->cmsg_type == UDP_GRO) {
                int size;
                memcpy(&size, CMSG_DATA(at), sizeof(size));
                if (size > 0)
                    *segment = (uint32_t)size;
            }
        }
    }

    static inline struct cmsghdr *kp_put(
        struct cmsghdr *at, int level, int type, const void *value, size_t size
    ) {
        at->cmsg_level = level;
        at->cmsg_type = type;
        at->cmsg_len = CMSG_LEN(size);
        memcpy(CMSG_DATA(at), value, size);
        return (struct cmsghdr *)((char *)at + CMSG_SPACE(size));
    }

    /* The local address to send from (NULL: the socket's) and the size of segments (0: no cutting);
       returns how much room was used. */
    static inline size_t kp_write_control(
        KpControl *control, const KpAddress *local, uint32_t interface, uint32_t segment
    ) {
        struct cmsghdr *at = &control->align;
        if (local != NULL && local->any.sa_family == AF_INET) {
            struct in_pktinfo info = {.ipi_spec_dst = local->v4.sin_addr};
            at = kp_put(at, IPPROTO_IP, IP_PKTINFO, &info, sizeof(info));
        } else if (local != NULL && local->any.sa_family == AF_INET6) {
            struct in6_pktinfo info = {local->v6.sin6_addr, interface};
            at = kp_put(at, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof(info));
        }
        if (segment) {
            uint16_t size = (uint16_t)segment;
            at = kp_put(at, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof(size));
        }
        return (size_t)((char *)at - control->room);
    }
    """
    ctypedef struct Control "KpControl":
        char room[64]
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
    void kp_read_control(msghdr *, Address *local, uint32_t *segment) noexcept nogil
    size_t kp_write_control(
        Control *, const Address *local, uint32_t interface, uint32_t segment
    ) noexcept nogil
    int receive_messages "kp_recvmmsg"(int fd, mmsghdr *, unsigned int most) noexcept nogil
    int send_messages "kp_sendmmsg"(int fd, mmsghdr *, unsigned int size) noexcept nogil
    int send_message "kp_sendmsg"(int fd, const msghdr *) noexcept nogil
    int send_bytes "kp_send"(int fd, const void *, size_t size) noexcept nogil

    const int IPPROTO_UDP, IP_PKTINFO, IPV6_RECVPKTINFO, UDP_SEGMENT, UDP_GRO, MSG_TRUNC
    const int EINVAL, EIO, EMSGSIZE, EOPNOTSUPP
    const int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    void *MAP_FAILED
    void *mmap(void *, size_t, int protection, int flags, int fd, size_t offset) noexcept nogil
    int munmap(void *, size_t) noexcept nogil

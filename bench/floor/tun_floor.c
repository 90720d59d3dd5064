/* The floor of a packet engine on a TUN device: reads a packet, puts one other address into it,
 * corrects the checksums, writes it back. One service, one endpoint, no table, no state.
 *
 * tun_floor DEVICE SERVICE ENDPOINT
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 10, FRONT = 54, MOST = 65535, SPIN = 20000 };

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint16_t fold(uint32_t sum) {
    sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)((sum & 0xFFFF) + (sum >> 16));
}

/* RFC 1624; `inverted` is false for a field that holds a partial sum. */
static void correct(uint8_t *field, const uint8_t *old, const uint8_t *fresh, int inverted) {
    uint16_t word, was[2], is[2];
    uint32_t sum;
    memcpy(&word, field, 2);
    memcpy(was, old, 4);
    memcpy(is, fresh, 4);
    sum = inverted ? (uint16_t)~word : word;
    sum += (uint16_t)~was[0] + (uint16_t)~was[1] + is[0] + is[1];
    word = fold(fold(sum));
    if (inverted)
        word = (uint16_t)~word;
    memcpy(field, &word, 2);
}

static void move(uint8_t *packet, int partial, uint8_t *place, const uint8_t *address) {
    uint8_t *transport = packet + (packet[0] & 15) * 4;
    correct(packet + 10, place, address, 1);
    if (packet[9] == 6)
        correct(transport + 16, place, address, !partial);
    else if (packet[9] == 17 && (transport[6] | transport[7]))
        correct(transport + 6, place, address, !partial);
    memcpy(place, address, 4);
}

int main(int count, char **words) {
    static uint8_t room[FRONT + HEADER + MOST];
    uint8_t *header = room + FRONT, *packet = header + HEADER;
    uint8_t service[4], endpoint[4];
    struct ifreq request = {0};
    struct pollfd waited = {.events = POLLIN};
    uint64_t last = 0;
    int queue;
    if (count != 4 || inet_pton(AF_INET, words[2], service) != 1 ||
        inet_pton(AF_INET, words[3], endpoint) != 1)
        return 2;
    queue = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    strncpy(request.ifr_name, words[1], IFNAMSIZ - 1);
    request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    if (queue < 0 || ioctl(queue, TUNSETIFF, &request) < 0) {
        perror(words[1]);
        return 1;
    }
    waited.fd = queue;
    for (;;) {
        ssize_t got = read(queue, header, HEADER + MOST);
        if (got < 0) {
            if (now() - last < SPIN)
                sched_yield();
            else
                poll(&waited, 1, -1);
            continue;
        }
        last = now();
        if (got >= HEADER + 20 && packet[0] >> 4 == 4) {
            if (memcmp(packet + 16, service, 4) == 0)
                move(packet, header[0] & 1, packet + 16, endpoint);
            else if (memcmp(packet + 12, endpoint, 4) == 0)
                move(packet, header[0] & 1, packet + 12, service);
        }
        if (write(queue, header, (size_t)got) < 0)
            continue;
    }
}

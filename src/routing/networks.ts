import { BlockList, isIPv6 } from 'node:net';
export function networkSet(cidrs: readonly string[]): { has(address: string): boolean } {
  const list = new BlockList();
  for (const cidr of cidrs) {
    const [net = '', bits = ''] = cidr.split('/');
    const family = isIPv6(net) ? 'ipv6' : 'ipv4';
    list.addSubnet(net, Number(bits || (family === 'ipv6' ? 128 : 32)), family);
  }
  return {
    has: (address) => {
      const plain = address.replace(/^::ffff:/i, '');
      return list.check(plain, isIPv6(plain) ? 'ipv6' : 'ipv4');
    },
  };
}
